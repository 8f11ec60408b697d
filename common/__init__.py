"""What every room may use: errors, commands, files, photos, the machine. Needs no torch, and imports no other room."""
