"""flavourctl: asks, prints, never decides."""
