"""What differs between classification and verification; stages ask the modules of this folder."""
