"""A service that scores images, with the standard library alone; replace `score` by your model."""

import base64
import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


def score(image: Image.Image, prompt: str) -> float:
    """How red the image is, from 0 to 1."""
    red, green, blue = image.convert("RGB").resize((1, 1)).getpixel((0, 0))
    return red / (red + green + blue + 1)


class Judge(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        images = [Image.open(io.BytesIO(base64.b64decode(image))) for image in request["images"]]
        scores = [score(image, prompt) for image, prompt in zip(images, request["prompts"], strict=True)]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"scores": scores}).encode())


if __name__ == "__main__":
    ThreadingHTTPServer(("localhost", 8000), Judge).serve_forever()
