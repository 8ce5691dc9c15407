"""How image bytes travel: whole, as a delta from a precursor, sealed for one product's devices.

`methods` is the table; `choose` measures; `sealed` and `wrap` keep a payload confidential;
`chunks` finds a poisoned piece of a download; `refdelta` is this project's own delta format.
"""
