/** What a hostile page tries on both services, in all ways that a browser has; returns what it could read. */
async ({ producer, consumer, event }) => {
  const read = [];
  let calls = 0;
  const one = JSON.stringify(event);
  const posts = [
    [`${consumer}/consumers/stop`, ""],
    [`${consumer}/consumers/pause`, ""],
    [`${consumer}/consumers/start`, '{"accept": true}'],
    [`${consumer}/consumers/seek`, '{"to": "beginning"}'],
    [`${consumer}/consumers/dead-letters/redrive`, '{"limit": 10}'],
    [`${producer}/producers/basic_producer?number_of_people=5`, ""],
    [`${producer}/producers/events`, one],
  ];
  const gets = [
    `${consumer}/consumers/status`,
    `${consumer}/consumers/messages`,
    `${consumer}/consumers/dead-letters`,
    `${producer}/metrics`,
  ];

  async function fetched(url, options) {
    calls += 1;
    try {
      const answer = await fetch(url, { credentials: "include", signal: AbortSignal.timeout(5_000), ...options });
      if (answer.type !== "opaque") read.push(`${options.method ?? "GET"} ${url} ${answer.status}`);
    } catch {
      // the browser does not let it read
    }
  }

  function loaded(tag, attributes, onEither = () => {}) {
    calls += 1;
    return new Promise((resolve) => {
      const element = Object.assign(document.createElement(tag), attributes);
      const done = () => resolve(onEither(element));
      element.onload = done;
      element.onerror = done;
      setTimeout(done, 3_000);
      document.documentElement.append(element);
    });
  }

  function lookInto(frame) {
    try {
      if (/seen-by-nobody|state/.test(frame.contentDocument.documentElement.textContent)) read.push(`frame ${frame.src}`);
    } catch {
      // likewise
    }
  }

  function formed(url, body, enctype) {
    calls += 1;
    const name = `frame-${calls}`;
    const form = Object.assign(document.createElement("form"), { action: url, method: "post", enctype, target: name });
    const begin = body.slice(0, -1); // {"a": 1} is sent as {"a": 1, "x":"="}
    form.append(Object.assign(document.createElement("input"), { name: body && `${begin}, "x":"`, value: '"}' }));
    document.documentElement.append(form);
    return loaded("iframe", { name }).then(() => {
      const sent = loaded("iframe", {}); // time for the answer
      form.submit();
      return sent;
    });
  }

  const simple = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"];
  const work = [];
  for (const [url, body] of posts) {
    for (const type of simple) {
      const headers = { "Content-Type": type };
      work.push(fetched(url, { method: "POST", mode: "no-cors", headers, body }));
      work.push(fetched(url, { method: "POST", mode: "cors", headers, body }));
    }
    work.push(fetched(url, { method: "POST", mode: "no-cors", body: new Blob([body]) })); // with no content type at all
    work.push(fetched(url, { method: "POST", headers: { "Content-Type": "application/json" }, body }));
    work.push(fetched(url, { method: "POST", headers: { "X-Forwarded-Host": location.host }, body }));
    work.push(formed(url, body, "text/plain"));
    work.push(fetched(url, { method: "PUT", body }), fetched(url, { method: "DELETE" }));
    navigator.sendBeacon(url, body);
  }
  for (const url of gets) {
    work.push(fetched(url, {}), fetched(url, { mode: "no-cors" }), fetched(`${url}?callback=read`, {}));
    work.push(loaded("script", { src: `${url}?callback=read` }), loaded("iframe", { src: url }, lookInto));
    work.push(loaded("img", { src: url }), loaded("link", { rel: "stylesheet", href: url }));
  }
  const events = new EventSource(`${consumer}/consumers/messages/stream?last=0`);
  events.onopen = () => read.push("event source");
  events.onmessage = (event) => read.push(`event source ${event.data}`);
  await Promise.all(work);
  await new Promise((resolve) => setTimeout(resolve, 300));
  events.close();
  return { read, calls };
};
