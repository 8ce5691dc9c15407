"""refdelta: a delta that predicts references (docs/protocol/refdelta.md).

Most of what differs between two builds of the same source is addresses: a branch or a pointer
changes because what it points to moved. refdelta tells the device how things moved, lets it
predict every reference in the new image from the old one, and sends only what was predicted
wrongly and what is really new.

- `applier.Applier` runs on the device: standard library only, bounded memory, every byte it reads
  from a payload is checked before it is used.
- `encoder.encode` runs on the author's bench; it needs the extra ``delta`` (numpy, hdiffpatch).
- `wire`, `regions`, `labels` and `predict` are shared: the encoder makes its prediction by calling the
  very functions the device calls, so that the two cannot disagree.
"""
