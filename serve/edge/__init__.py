"""What stands between the network and an application, the same in front of any engine; pure ASGI.

In comes a request as it arrived, out goes one that is authentic, whole and within its limits, with an id and a trace;
or a refusal in OpenAI's form. Begin with `harden`, which puts the layers around an application in their order. Then
read `ids`, `errors`, `framing`, `head`, `cors`, `auth` and `key_file`, `limits`, `bodies`, `lifecycle` (drain), and
`observing`.
"""
