"""Files, folders and text: whole or absent, refused when altered, read strictly. Modules are imported by name."""
