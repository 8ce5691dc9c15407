"""The image repository: what is published, how a publish is verified and made durable."""
