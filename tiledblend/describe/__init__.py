"""What is to be made: layers, canvas, composite, placement; the job file and its schema. Frozen, checked when made.

Nothing here reads a pixel. What decides bits is `fingerprint`.
"""
