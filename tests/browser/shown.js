/** What the live page shows at one moment, by name; colours by the names that the page's style gives them. */
() => {
  const by = (selector) => document.querySelector(selector);
  const isVisible = (node) => node !== null && node.checkVisibility();
  const text = (selector) => (isVisible(by(selector)) ? by(selector).textContent : "");
  const colours = new Map();
  const probe = document.body.appendChild(document.createElement("i"));
  for (const name of ["text", "muted", "good", "warn", "bad"]) {
    probe.style.color = `var(--${name})`;
    colours.set(getComputedStyle(probe).color, name);
  }
  probe.remove();
  const colour = (selector) => by(selector) && colours.get(getComputedStyle(by(selector)).color);
  const facts = new Map([...document.querySelectorAll("#facts > div")].filter(({ lastElementChild: value }) => value.textContent).map((row) => [row.children[0].textContent, row.children[1].textContent]));
  const isDimmed = (node) => {
    for (let at = node; at !== null; at = at.parentElement) if (Number(getComputedStyle(at).opacity) < 1) return true;
    return false;
  };
  const rows = [...document.querySelectorAll("#lag-rows tr")].map((row) => [...row.children].map((cell) => cell.textContent));
  return {
    state: text("#state"),
    "state colour": colour("#state"),
    title: document.title,
    health: text("#health"),
    "health colour": colour("#health"),
    consumed: facts.get("consumed"),
    "dead-lettered": facts.get("dead-lettered"),
    skipped: facts.get("skipped")?.split(";")[0],
    member: facts.get("member id"),
    throttled: facts.has("throttled"),
    lag: text("#lag-total"),
    "drawn lag": /, lag (.+);/.exec(by("#lag-line").ariaLabel)?.[1],
    waiting: text("#lag-waiting"),
    partitions: Object.fromEntries(rows.map(([partition, , lag, committed, end]) => [partition, [lag, committed, end]])),
    error: text("#last-error"),
    "error colour": colour("#last-error"),
    answer: text("#control-said"),
    banner: text("#notices .trouble"),
    dimmed: [...document.querySelectorAll("[id]")].filter((node) => node.checkVisibility() && isDimmed(node)).map(({ id }) => id),
  };
};
