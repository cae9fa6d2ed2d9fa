"""Whether a device computes what the CPU does, and how fast, in one report: `python -m zipcache_rt.selftest`."""
