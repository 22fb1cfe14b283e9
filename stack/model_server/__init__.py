"""A local server that speaks the OpenAI wire protocol, quotes what it is given, and misbehaves on demand.

`python -m stack.model_server --port 0 --port-file FILE` runs it on the loopback interface.

`POST /v1/chat/completions`, `POST /v1/embeddings` and `GET /v1/models` are the protocol's. Further:

- `POST /control` takes a list of behaviours (`behaviour.Behaviour`) for the next requests;
- `POST /control/release/NAME` opens a gate;
- `DELETE /control` forgets the behaviours, opens every gate and empties the log;
- `GET /requests` shows what was asked, `GET /state` what is under way.
"""
