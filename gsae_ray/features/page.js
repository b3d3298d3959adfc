// The features of an SAE: a list to search and sort, and the page of one feature. Data is loaded by scripts.
(() => {
  const at = (id) => document.getElementById(id);
  const known = JSON.parse(at("known").textContent);
  const PAGE = 100; // rows of the list at a time
  const waiting = new Map(), loaded = new Map();
  let all = null; // the list: numbers and tokens of each feature
  let words = []; // the texts of tokens
  let order = []; // the features that are listed
  let current = -1; // the feature that is shown
  let first = 0; // place in `order` of the first row

  window.gsaeData = (name, value) => waiting.get(name)(value);
  function load(name) {
    if (!loaded.has(name)) {
      loaded.set(name, new Promise((resolve, reject) => {
        const inside = at(`data-${name}`);
        if (inside) { resolve(JSON.parse(inside.textContent)); return; }
        waiting.set(name, resolve);
        const script = document.createElement("script");
        script.src = `data/${name}.js`;
        script.charset = "utf-8";
        script.onload = () => script.remove();
        script.onerror = () => { loaded.delete(name); script.remove(); reject(new Error(`data/${name}.js`)); };
        document.head.append(script);
      }));
    }
    return loaded.get(name);
  }
  const failed = (error) => { at("alert").hidden = false; at("alert").textContent = `Cannot be loaded: ${error.message}. This page takes the folder that it was written to, whole.`; };

  const decoded = (text, Kind) => new Kind(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
  const Places = () => (all.bytes === 2 ? Uint16Array : Uint32Array);
  const none = () => (all.bytes === 2 ? 0xffff : 0xffffffff);
  const tokensOf = (table, feature) => table.tokens.subarray(feature * table.each, (feature + 1) * table.each).filter((place) => place !== none());

  // Small things to draw with.
  function make(tag, options, ...inside) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(options || {})) element.setAttribute(name, value);
    element.append(...inside);
    return element;
  }
  const short = (number) => (number === 0 ? "0" : Math.abs(number) >= 1000 ? Math.round(number).toLocaleString("en") : String(Number(number.toPrecision(3)))).replace("-", "\u2212");
  const percent = (share) => (share === 0 ? "0" : `${share < 1e-4 ? (100 * share).toExponential(1) : short(100 * share)} %`);
  const visible = (text) => text.replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5").replace(/\r/g, "\u240d") || "\u2205";
  const chip = (place) => make("span", { class: "token", dir: "auto" }, visible(words[place]));
  const link = (feature) => make("a", { href: `#feature=${feature}` }, String(feature));

  // The list.
  function found(feature, wanted) {
    for (const table of [all.top, all.raised]) {
      for (let place = feature * table.each; place < (feature + 1) * table.each; place += 1) if (wanted[table.tokens[place]]) return true;
    }
    return false;
  }
  const numbered = () => { const found = /^#(\d+)$/.exec(at("query").value); return found ? Number(found[1]) : null; };
  const absent = (number) => `There is no feature ${number}: they are 0 to ${known.features - 1}.`;
  function list() {
    const query = at("query").value.toLowerCase(), number = numbered();
    const wanted = number === null && query ? words.map((text) => text.toLowerCase().includes(query)) : null;
    order = [];
    for (let feature = 0; feature < known.features; feature += 1) {
      if (number !== null ? feature !== number : at("alive").checked && all.max[feature] === 0) continue;
      if (!wanted || found(feature, wanted)) order.push(feature);
    }
    const by = { dense: (f) => -all.density[f], rare: (f) => all.density[f], max: (f) => -all.max[f], small: (f) => all.max[f] }[at("sort").value];
    if (by) order.sort((a, b) => by(a) - by(b) || a - b);
    first = 0;
    rows();
  }
  function rows() {
    const shown = order.slice(first, first + PAGE);
    const total = order.length.toLocaleString("en");
    at("count").textContent = order.length > PAGE ? `${first + 1} to ${first + shown.length} of ${total} features` : `${total} ${order.length === 1 ? "feature" : "features"}`;
    if (!order.length && numbered() >= known.features) at("count").textContent = absent(numbered());
    at("rows").replaceChildren(...shown.map((feature) => {
      const line = make("tr", { "data-feature": feature });
      line.append(make("th", { scope: "row", class: "number" }, link(feature)), make("td", { class: "number" }, all.max[feature] === 0 ? "never" : percent(all.density[feature])), make("td", { class: "number" }, short(all.max[feature])));
      const last = make("td");
      for (const place of tokensOf(all.top, feature).slice(0, 3)) last.append(chip(place), " ");
      line.append(last);
      return line;
    }));
    at("before").disabled = first === 0;
    at("after").disabled = first + PAGE >= order.length;
    mark();
  }
  function mark() {
    for (const line of at("rows").children) {
      if (Number(line.dataset.feature) === current) { line.setAttribute("aria-current", "true"); seen(line); } else line.removeAttribute("aria-current");
    }
    const place = order.indexOf(current);
    at("previous").disabled = order.length === 0 || place === 0;
    at("next").disabled = order.length === 0 || place === order.length - 1;
  }
  function seen(line) { // scrolls the list, never the page
    const box = at("rows").closest(".scroll"), top = line.offsetTop, head = box.querySelector("thead").offsetHeight;
    if (top - head < box.scrollTop) box.scrollTop = top - head;
    else if (top + line.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top + line.offsetHeight - box.clientHeight;
  }

  // One feature.
  function section(title, ...inside) { return make("section", {}, make("h3", {}, title), ...inside); }
  function table(title, heads, lines) {
    const head = make("tr", {}, ...heads.map((text, place) => make("th", place ? { scope: "col", class: "number" } : { scope: "col" }, text)));
    const body = lines.map((cells) => make("tr", {}, ...cells.map((cell, place) => make("td", place === heads.length - 1 ? { class: "number" } : {}, ...[cell].flat()))));
    return section(title, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
  }
  const pairs = ([names, numbers], name, number) => names.map((one, place) => [name(one), number(numbers[place])]);
  function alike(feature) { // a link to a feature, with what it fires on
    const chips = tokensOf(all.top, feature);
    return [link(feature), " ", ...[...chips.slice(0, 2)].flatMap((place) => [chip(place), " "])];
  }
  function histogram(start, counts, edges, by, axis = by) {
    const most = Math.max(...counts), width = 100 / counts.length;
    const drawn = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const said = `${counts.reduce((a, b) => a + b, 0).toLocaleString("en")} rows by ${by}, from ${short(edges[start])} to ${short(edges[start + counts.length])}; most of them near ${short(edges[start + counts.indexOf(most)])}`;
    for (const [name, value] of Object.entries({ viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img", "aria-label": said })) drawn.setAttribute(name, value);
    counts.forEach((count, place) => {
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const height = count ? Math.max(1, (100 * count) / most) : 0;
      for (const [name, value] of Object.entries({ x: place * width, y: 100 - height, width: 0.9 * width, height })) bar.setAttribute(name, String(value));
      drawn.append(bar);
    });
    const ends = [0, Math.floor(counts.length / 2), counts.length].map((place) => make("span", {}, short(edges[start + place])));
    return make("figure", {}, make("figcaption", {}, `Rows by ${axis}; highest: ${most.toLocaleString("en")}`), drawn, make("div", { class: "ends" }, ...(counts.length > 2 ? ends : [ends[0], ends[2]])));
  }
  function piece([quantile, context, position, peak, begin, length], scale, tokens, levels) {
    const values = Array.from(levels.subarray(begin, begin + length), (level) => (level * scale) / known.levels);
    const texts = Array.from(tokens.subarray(begin, begin + length), (place) => words[place]);
    const said = `${short(values[peak])}${quantile === null ? "" : ` · above ${Math.round(100 * quantile)} % of its activations`} · context ${context}, position ${position}`;
    return make("li", {}, make("div", { class: "about" }, said), shaded(texts, values.map((value) => value / (scale || 1)), peak, (place) => short(values[place])));
  }
  async function show(feature) {
    current = feature;
    mark();
    let shard;
    try { shard = await load(`features_${Math.floor(feature / known.shard)}`); } catch (error) { failed(error); return; }
    if (current !== feature) return; // another one was asked for meanwhile
    at("alert").hidden = true;
    if (typeof shard.tokens === "string") { shard.tokens = decoded(shard.tokens, Places()); shard.activations = decoded(shard.activations, Uint8Array); }
    const told = shard.features[feature % known.shard], parts = [];
    at("title").textContent = `Feature ${feature}${told.fired ? "" : " never fires"}`;
    document.title = `${feature} · ${document.querySelector("h1").textContent}`;
    if (told.fired) {
      const facts = { density: `${percent(told.density)} (${told.fired.toLocaleString("en")} rows)`, "max activation": short(told.max), "mean activation, where it fires": short(told.mean) };
      parts.push(make("dl", { class: "facts" }, ...Object.entries(facts).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))), make("div", { class: "figures" }, histogram(...told.histogram, known.edges, "activation", "activation (log scale)"), histogram(0, told.positions, known.positions, "position in the context")));
    } else parts.push(make("p", {}, `It fires on none of the ${known.rows.toLocaleString("en")} held-out rows: a dead feature, or one of something that is not among them.`));
    for (const [top, title, why] of [[true, "Where it is largest", "one piece of text a context"], [false, "Over its range", "drawn at even quantiles of its activations"]]) {
      const chosen = told.pieces.filter((one) => (one[0] === null) === top);
      if (chosen.length) parts.push(section(title, make("p", { class: "quiet" }, `${why}; the stronger a token is marked, the more active the feature is on it`), make("ol", { class: "pieces" }, ...chosen.map((one) => piece(one, told.scale, shard.tokens, shard.activations)))));
    }
    const columns = [];
    if (told.top[0].length) columns.push(table("Fires most on", ["token", "sampled rows"], pairs(told.top, chip, String)));
    if (told.raised[0].length) columns.push(table("Raises the logits of", ["token", "by"], pairs(told.raised, chip, short)), table("Lowers the logits of", ["token", "by"], pairs(told.lowered, chip, short)));
    if (told.near[0].length) columns.push(table("Nearest features", ["feature", "cosine"], pairs(told.near, alike, short)));
    if (told.coactive[0].length) columns.push(table("On at its top examples", ["feature", "share"], pairs(told.coactive, alike, percent)));
    if (told.others.length) {
      columns.push(table("Nearest in other SAEs", ["feature of", "cosine"], told.others.map(([number, other, cosine]) => [make("a", { href: `${known.others[number].href}#feature=${other}` }, `${other} of ${known.others[number].label}`), short(cosine)])));
    }
    parts.push(make("div", { class: "columns" }, ...columns));
    if (known.logits && told.raised[0].length) parts.push(make("p", { class: "quiet" }, `Logits: ${known.logits}`));
    at("shown").replaceChildren(...parts);
    document.body.dataset.feature = String(feature);
  }

  // Where the reader goes. In a frame without an address of its own, as in MLflow, there is no link to it.
  function go(feature, keep) {
    try { history[keep ? "replaceState" : "pushState"](null, "", `#feature=${feature}`); } catch { /* as above */ }
    show(feature);
  }
  function listed(feature) { // turns the list to the page that has it
    const place = order.indexOf(feature), start = Math.floor(place / PAGE) * PAGE;
    if (place >= 0 && start !== first) { first = start; rows(); }
  }
  function step(by) {
    if (!order.length) return;
    const place = order.indexOf(current), next = place < 0 ? 0 : Math.min(order.length - 1, Math.max(0, place + by));
    if (order[next] === current) return;
    current = order[next];
    listed(current);
    go(current, true);
    if (at("feature").getBoundingClientRect().top < 0) at("feature").scrollIntoView();
  }
  function asked() {
    const wanted = /^#feature=(\d+)$/.exec(location.hash);
    if (wanted && Number(wanted[1]) < known.features) return Number(wanted[1]);
    if (wanted) { at("alert").hidden = false; at("alert").textContent = absent(wanted[1]); }
    return null;
  }
  const follow = () => { const wanted = asked(); if (wanted !== null && wanted !== current) { show(wanted); listed(wanted); } };

  document.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    const anchor = event.target.closest("a");
    const inList = event.target.closest("#rows tr");
    const wanted = anchor ? /^#feature=(\d+)$/.exec(anchor.getAttribute("href")) : null;
    if (!wanted && (anchor || !inList)) return;
    event.preventDefault();
    const feature = wanted ? Number(wanted[1]) : Number(inList.dataset.feature);
    go(feature);
    listed(feature);
    if (!inList || window.innerWidth < 900) at("feature").scrollIntoView();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || !all) return;
    if (event.target === at("query")) {
      if (event.key === "Escape") at("query").blur();
      return;
    }
    const arrow = event.key.startsWith("Arrow"); // Shift with one selects text, and in a region one scrolls
    if (event.target === at("sort") || (arrow && (event.shiftKey || event.target.closest?.(".scroll")))) return;
    if (event.key === "/") { event.preventDefault(); at("query").focus(); at("query").select(); }
    else if (event.key === "j" || event.key === "ArrowRight") step(1);
    else if (event.key === "k" || event.key === "ArrowLeft") step(-1);
  });
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!all || !order.length) return;
    at("query").blur();
    go(order[0]);
    if (numbered() !== null) { at("query").value = ""; list(); listed(current); } // the list is whole again, to go on from there
  });
  at("query").addEventListener("input", () => all && list());
  at("sort").addEventListener("change", () => all && list());
  at("alive").addEventListener("change", () => all && list());
  at("previous").onclick = () => step(-1);
  at("next").onclick = () => step(1);
  at("before").onclick = () => { first = Math.max(0, first - PAGE); rows(); at("rows").closest(".scroll").scrollTop = 0; };
  at("after").onclick = () => { first += PAGE; rows(); at("rows").closest(".scroll").scrollTop = 0; };
  window.addEventListener("hashchange", follow);
  window.addEventListener("popstate", follow);

  Promise.all([load("list"), load("tokens")]).then(([listing, texts]) => {
    all = listing;
    words = texts;
    all.density = decoded(all.density, Float32Array);
    all.max = decoded(all.max, Float32Array);
    for (const name of ["top", "raised"]) all[name].tokens = decoded(all[name].tokens, Places());
    list();
    const wanted = asked();
    document.body.dataset.listed = "true";
    if (wanted !== null || order.length || known.features) show(wanted ?? order[0] ?? 0).then(() => listed(current));
  }).catch(failed);
})();
