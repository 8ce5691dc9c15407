"""Parcels: what is carried to devices without a network, and the receipts that come back."""
