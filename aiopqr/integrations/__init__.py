"""aiopqr in frameworks. Each module needs an extra of its own, so nothing here imports any: name the one you want."""
