"""What a user calls: pictures in, pictures out."""
