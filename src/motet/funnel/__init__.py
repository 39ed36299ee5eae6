"""The data funnel: which conversations become training data, by which rules the others were dropped, and examples.

`sift` (sift.py) is the entry; rules of one row are in structure, leaks, arithmetic and consistency, rules over all rows
in duplicates, contamination and consistency. No torch, no tokenizer, no engine: those are the caller's.
"""
