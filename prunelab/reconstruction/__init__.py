"""Repair after pruning: kept weights fitted to the dense model's outputs, masks unchanged."""
