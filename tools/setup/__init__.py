"""Set-up of the demo and the tests: environment, ComfyUI, server, client. Standard library only, but for client.py."""
