"""The bundle: manifest, deterministic packing, strict unpacking, object stores."""
