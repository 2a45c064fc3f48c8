"""For eyes: previews, seams in numbers, the page, notebooks, reports, outlines, small image files.

Nothing here writes a result.
"""
