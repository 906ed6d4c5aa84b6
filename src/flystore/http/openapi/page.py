"""The document as one page for people, to read and to try routes: no script or font comes from elsewhere."""

import base64
import hashlib
import json
from collections.abc import Iterator
from html import escape
from typing import Any

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #1b1f24; }
h2 { margin-top: 2em; } code, pre, input, textarea { font: 13px/1.4 ui-monospace, monospace; }
details { border: 1px solid #d5dae0; border-radius: 4px; margin: .4em 0; padding: .3em .7em; }
summary { cursor: pointer; } summary b { display: inline-block; min-width: 4.5em; }
table { border-collapse: collapse; width: 100%; margin: .6em 0; }
td, th { border-top: 1px solid #e3e7eb; padding: .25em .5em; text-align: left; vertical-align: top; }
pre { background: #f4f6f8; padding: .6em; overflow: auto; max-height: 24em; }
input { width: 16em; } textarea { width: 100%; height: 6em; } .key { position: sticky; top: 0; background: #fff; }
"""

_SCRIPT = """
for (const form of document.querySelectorAll("form[data-path]")) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const out = form.querySelector("output");
    const query = new URLSearchParams();
    const headers = {};
    const key = document.getElementById("key").value;
    if (key) headers["Authorization"] = "Apikey " + key;
    let path = form.dataset.path;
    for (const input of form.querySelectorAll("input[name]")) {
      if (input.dataset.in === "path") {
        path = path.replace("{" + input.name + "}", input.value.split("/").map(encodeURIComponent).join("/"));
      } else if (input.value !== "") {
        if (input.dataset.in === "header") headers[input.name] = input.value;
        else for (const value of input.dataset.many ? input.value.split("|") : [input.value])
          query.append(input.name, value);
      }
    }
    const body = form.querySelector("textarea");
    if (body) headers["Content-Type"] = body.dataset.type;
    const started = performance.now();
    try {
      const answer = await fetch(document.body.dataset.base + path + (query.size ? "?" + query : ""),
        {method: form.dataset.method, headers, body: body ? body.value : undefined});
      const type = answer.headers.get("content-type") || "";
      const content = await answer.arrayBuffer();
      const text = /json|text/.test(type) || !type
        ? new TextDecoder().decode(content.slice(0, 20000)) : "(" + content.byteLength + " bytes)";
      const took = (performance.now() - started).toFixed(0);
      out.textContent = answer.status + " " + type + ", " + took + " ms\\n\\n" + text;
    } catch (error) { out.textContent = String(error); }
    out.hidden = false;
  });
}
"""


def policy() -> str:
    """Return the Content-Security-Policy under which the page works, and nothing that somebody put into it."""

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {digest(_SCRIPT)}; style-src {digest(_STYLE)}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def page(document: dict[str, Any], root_path: str = "") -> str:
    """Return the page.

    Parameters
    ----------
    root_path : str
        Where the service lies on its host, without a trailing slash.
    """
    return "".join(_page(document, root_path))


def _page(document: dict[str, Any], root_path: str) -> Iterator[str]:
    info = document["info"]
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])}: routes</title>'
    yield f'<style>{_STYLE}</style></head><body data-base="{escape(root_path)}">'
    yield f"<h1>{escape(info['title'])}: routes</h1>"
    yield f"<p>{_text(info['description'])} "
    yield f'The same for programs: <a href="{escape(root_path)}/openapi.json">openapi.json</a>.</p>'
    yield '<p class="key"><label>API key, to try routes here: <input id="key" type="password" autocomplete="off">'
    yield "</label></p>"
    for tag in document["tags"]:
        yield f"<h2>{escape(tag['name'])}</h2><p>{_text(tag['description'])}</p>"
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation["tags"]:
                    yield from _operation(document, path, method, operation)
    yield "<h2>shapes</h2>"
    for name, schema in document["components"]["schemas"].items():
        yield f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>{_shape(schema)}</details>'
    yield f"<script>{_SCRIPT}</script></body></html>\n"


def _operation(document: dict[str, Any], path: str, method: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f'<details id="{escape(operation["operationId"])}"><summary><b>{method.upper()}</b> '
    yield f"<code>{escape(path)}</code> {_text(operation['summary'])}</summary>"
    if "description" in operation:
        yield f"<p>{_text(operation['description'])}</p>"
    yield f'<form data-method="{method.upper()}" data-path="{escape(path)}">'
    parameters = operation.get("parameters", [])
    if parameters:
        yield "<table><tr><th>parameter</th><th>value</th><th></th></tr>"
        yield from map(_parameter, parameters)
        yield "</table>"
    if "requestBody" in operation:
        yield from _body(operation["requestBody"]["content"])
    yield "<p><button>Send</button></p><pre><output hidden></output></pre></form>"
    yield "<table><tr><th>answer</th><th></th></tr>"
    for status, answer in operation["responses"].items():
        if "$ref" in answer:
            answer = document["components"]["responses"][answer["$ref"].rpartition("/")[2]]
        types = ", ".join(f"<code>{escape(name)}</code>" for name in answer.get("content", {}))
        schemas = {json.dumps(kind.get("schema", {})) for kind in answer.get("content", {}).values()} - {"{}"}
        shown = "".join(_shape(json.loads(text)) for text in sorted(schemas)) if int(status) < 400 else ""
        yield f"<tr><td>{status}</td><td>{_text(answer['description'])} {types}{shown}</td></tr>"
    yield "</table></details>"


def _parameter(parameter: dict[str, Any]) -> str:
    schema = parameter["schema"]
    bounds = {key: value for key, value in schema.items() if key != "type"}
    shown = f"<code>{escape(json.dumps(bounds))}</code>" if bounds else ""
    many = ' data-many="1"' if schema.get("type") == "array" else ""
    return (
        f"<tr><td><code>{escape(parameter['name'])}</code>{' *' if parameter['required'] else ''}</td>"
        f'<td><input name="{escape(parameter["name"])}" data-in="{parameter["in"]}"{many}></td>'
        f"<td>{_text(parameter.get('description', ''))} {escape(str(schema.get('type', '')))}"
        f"{', several joined by |' if many else ''} {shown}</td></tr>"
    )


def _body(content: dict[str, Any]) -> Iterator[str]:
    first = next(iter(content))
    types = ", ".join(f"<code>{escape(name)}</code>" for name in content)
    yield f'<p>Body: {types}</p><textarea data-type="{escape(first)}"></textarea>{_shape(content[first]["schema"])}'


def _shape(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f' <a href="#{escape(name)}"><code>{escape(name)}</code></a>'
    return f"<pre>{escape(json.dumps(schema, indent=1))}</pre>"


def _text(text: str) -> str:
    """Return a sentence whose words in backticks are code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))
