"""The page that asks for user and password; Gradio's own would tell the names of runs and models before the login."""

from html import escape

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>DreamBooth</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px system-ui, sans-serif; max-width: 22rem; margin: 15vh auto; padding: 0 1rem }}
label {{ display: block; margin: .8rem 0 }}
input, button {{ font: inherit; width: 100%; padding: .5rem; box-sizing: border-box }}
</style></head><body>
<h1>DreamBooth</h1>
<p>{note}</p>
<form id="login" method="post" action="login">
<label>User <input name="username" autocomplete="username" required autofocus></label>
<label>Password <input name="password" type="password" autocomplete="current-password" required></label>
<button>Log in</button>
<p id="told" role="alert"></p>
</form>
<script>
const form = document.getElementById("login");
form.addEventListener("submit", async (event) => {{
  event.preventDefault();
  const answer = await fetch("login", {{ method: "POST", body: new FormData(form) }});
  if (answer.ok) location.reload();
  else document.getElementById("told").textContent = "That is not the user and the password.";
}});
</script>
</body></html>
"""


def login_page(note: str | None) -> bytes:
    """Return the page as UTF-8, with a sentence about where the password is."""
    return _PAGE.format(note=escape(note or "")).encode()
