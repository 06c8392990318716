"""The only code that imports ComfyUI: its models, patchers, folders, previews and options enter the pack here."""
