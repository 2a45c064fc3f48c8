"""How descriptions show themselves in a notebook."""

from __future__ import annotations

from importlib import import_module


class ShownInNotebooks:
    """A description with a picture of itself in notebooks.

    What draws it stands floors above: it is looked up by name when a notebook asks, so that nothing here imports
    upwards and nobody else loads it.
    """

    __slots__ = ()

    def _repr_html_(self) -> str:
        """HTML for a notebook's output cell."""
        html: str = import_module("tiledblend.look.notebook").html_of(self)
        return html
