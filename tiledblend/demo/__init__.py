"""Procedural slides of stained tissue, and the demo that blends them."""
