"""What a package can add to Emendo: one module each."""
