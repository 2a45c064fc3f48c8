"""What is to be made: layers, canvas, composite, placement; the job file and its schema. Frozen, checked when made.

Lengths and feathers are in `lengths`, an image with its mask in `layers`, the grid in `canvas`, all together in
`composite`, held to one another by `agreement`. A job file's `text` becomes a mapping, `schema` checks it, `job`
builds it. Nothing here reads a pixel. What decides bits is `fingerprint`.
"""
