"""Durable replay: the Reverb server, the writer of segments, their reader, and the learner's rings.

The only package that imports reverb, and so part of tensorflow. `rings` and `tables` do without both.
"""
