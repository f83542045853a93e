"""Devices: the mesh, where leaves are placed on it, and several processes working as one."""
