"""Disk, boot loader, device and faults in memory, for tests of ours and of yours (floor 5)."""
