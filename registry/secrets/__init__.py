"""Secrets of installs, sealed by who writes them and opened by the daemon alone.

binding      which secret of which install of which tenant, and which version of it: what an envelope is sealed to
envelope     the sealed form, and what can be wrong with one
sealing      Sealer: writers hold it, and cannot open with it
opening      Opener: the daemon holds it, and the command that renews the wrapping
local_keys, vault, kms   who wraps the data key: an X25519 pair, HashiCorp Vault, Google Cloud KMS
settings     which of them, from whose configuration
"""
