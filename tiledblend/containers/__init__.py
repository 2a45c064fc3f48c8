"""Where a result goes: which part holds which pixels, how a chunk is encoded, what the documents say.

One folder a container. Here for all of them alike: ledger, receipts, lock, commit, manifest, verify. Not here: what the
pixels are (`compose`) and who makes them when (`run`).
"""
