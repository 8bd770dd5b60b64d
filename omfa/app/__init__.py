"""Where people are: a page for the browser, nodes for ComfyUI. The functions under them are plain."""
