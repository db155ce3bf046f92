"""Cells: several daemons' worth of processes behind one port, under one supervisor (DESIGN §3, N5)."""
