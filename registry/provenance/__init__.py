"""Who signed a bundle: sigstore verification under pinned trust roots."""
