"""Deltas for one slot and little memory: the new image is written over the old one, block by block.

    payload = encoder.encode(old, new, encoder.Shape(memory_bytes=512 * 1024, log2_block=12))
    applier = Applier(BytesReader(payload), len(payload), Areas(slot, ring, journal), precursor, image)
    applier.run()                                       # again after any power cut, until it returns

The format is docs/protocol/inplace.md. `wire` reads it, `predict` and `moves` say what references
become, `applier` is the device: strict, cut-safe, within 32 KiB. `encoder` needs the extra ``delta``.
"""
