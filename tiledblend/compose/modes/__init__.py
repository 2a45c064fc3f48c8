"""How layers become one picture: one module a blending mode, above `kernels`.

A new mode is a module here with a `BlendMode` (its halo, which layers a region needs, how they are combined) and a
line in `compose.scene.MODES`. Plan, renderer and lazy face read only that protocol and never ask for a mode's name.
"""
