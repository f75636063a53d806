"""What `make release`, `make matrix` and `make agents` run. No part of the package."""
