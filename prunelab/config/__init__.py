"""From Hydra's config to plain, resolved, checked data. Hydra ends here; torch is never imported."""
