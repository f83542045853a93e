"""The runtime: agents supervised, recorded, reviewed and made better while they work."""
