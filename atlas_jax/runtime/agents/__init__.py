"""Agents of users, behind one interface, see `agent`."""
