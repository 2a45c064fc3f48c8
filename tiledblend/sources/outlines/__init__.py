"""Outlines drawn in a viewer, as masks: `files` parses them, `source` rasterises region by region."""
