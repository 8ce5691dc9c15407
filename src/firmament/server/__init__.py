"""Firmware server and status tracker server in one process (stack.md).

It stores and serves what authors signed, decides which device gets what and when, and keeps what
devices report. Nothing it holds can sign a release.
"""
