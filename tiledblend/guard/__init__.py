"""Processes that decode what strangers made: what one did when it died, and what may crash in one of its own.

Here: notes that outlive a process, the watched child, what a process that renders sets once. Not here: what is decoded.
"""
