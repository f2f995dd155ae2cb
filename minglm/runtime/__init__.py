"""The machine underneath: devices, memory, Ray, run folders, doctor."""
