"""Pixels of a composite: masks to weights, chunks to classes, one tile rendered or passed on, the lazy face.

Not here: what is asked for (`describe`), where it is stored (`containers`), who does it when (`run`).
"""
