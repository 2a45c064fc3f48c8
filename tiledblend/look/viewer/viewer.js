"use strict";
// One viewer, one world: every picture lies on the same canvas. The shown picture is at the bottom, the one that it is
// compared with above it (clipped at the swipe line, or dimmed), the layers' edges on top.
(async () => {
  const $ = (id) => document.getElementById(id);
  const scene = await load();
  if (!scene) return;
  const [height, width] = scene.shape;
  const OVERLAP = 2;
  const transparents = new Set([...scene.views.filter((view) => view.transparent), ...scene.edges].map((view) => view.id));
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const state = { shown: scene.views[0].id, other: "", how: "swipe", line: 0.5, opacity: 0.5, edges: new Set(),
    channels: scene.channels.map((c) => ({ ...c, on: true })) };
  const items = new Map(); // id of a view -> its newest image in the viewer, or null while it is being added

  const viewer = OpenSeadragon({
    id: "image", drawer: "canvas", showNavigationControl: false, showNavigator: true, navigatorId: "navigator",
    navigatorAutoFade: false, animationTime: calm ? 0 : 0.4, springStiffness: 8, zoomPerScroll: 1.25, maxZoomPixelRatio: 16,
    minZoomImageRatio: 0.7, visibilityRatio: 0.3, imageLoaderLimit: 6, timeout: 600000, tileRetryMax: 1, tileRetryDelay: 1500,
    maxImageCacheCount: 400,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
  });
  viewer.innerTracker.keyHandler = viewer.innerTracker.keyDownHandler = null; // keys are ours, wherever the focus is
  viewer.canvas.setAttribute("aria-label", "Image: arrows move, + and − zoom");

  async function load() {
    try {
      const answer = await fetch("scene.json");
      if (!answer.ok) throw new Error((await answer.text()).trim());
      return await answer.json();
    } catch (error) {
      alert_(`The image cannot be shown: ${error.message}`);
      return null;
    }
  }

  // --- pictures

  function source(id, channels) {
    // Tiles are drawn at fractions of pixels: without an overlap their smoothed ends let the ground shine through. What
    // is transparent is drawn on cleared ground, where an overlap would clear its neighbours.
    const transparent = transparents.has(id), overlap = transparent ? 0 : OVERLAP;
    const query = `?v=${scene.session}&o=${overlap}` + (channels === null ? "" : `&c=${encodeURIComponent(channels)}`);
    return {
      width, height, tileSize: scene.tile, tileOverlap: overlap, hasTransparency: () => transparent, minLevel: 0, maxLevel: scene.levels - 1,
      getTileUrl: (level, x, y) => `tile/${id}/${scene.levels - 1 - level}/${y}/${x}.png${query}`,
    };
  }

  function channelText() {
    if (!scene.channels.length) return null;
    return state.channels.filter((c) => c.on).map((c) => [c.index, c.colour, c.low, c.high].join(",")).join(";");
  }

  const isColoured = (id) => id.startsWith("result") || id.startsWith("image");

  function ensure(id) {
    if (items.has(id)) return;
    items.set(id, null);
    viewer.addTiledImage({
      tileSource: source(id, isColoured(id) ? channelText() : null), x: 0, y: 0, width: 1, opacity: 0,
      success: ({ item }) => { items.set(id, item); item.viewId = id; arrange(); },
    });
  }

  function recolour() {
    // A new picture is loaded above the old one, which goes when the new one is there: no flash of nothing.
    for (const [id, old] of items) {
      if (!old || !isColoured(id)) continue;
      if (!old.getOpacity()) { viewer.world.removeItem(old); items.delete(id); continue; }
      viewer.addTiledImage({
        tileSource: source(id, channelText()), x: 0, y: 0, width: 1, opacity: 0,
        success: ({ item }) => {
          items.set(id, item); item.viewId = id;
          item.addHandler("fully-loaded-change", tidy);
          arrange();
        },
      });
    }
  }

  function tidy() {
    for (const item of drawn()) {
      const newest = items.get(item.viewId);
      if (newest && newest !== item && (newest.getFullyLoaded() || !newest.getOpacity())) viewer.world.removeItem(item);
    }
  }

  const drawn = () => [...Array(viewer.world.getItemCount()).keys()].map((i) => viewer.world.getItemAt(i)); // from the bottom

  function arrange() {
    const wanted = [state.shown, state.other, ...state.edges].filter(Boolean);
    wanted.forEach(ensure);
    const raise = (item) => viewer.world.setItemIndex(item, viewer.world.getItemCount() - 1);
    wanted.forEach((id) => drawn().filter((item) => item.viewId === id).forEach(raise));
    for (const item of drawn()) {
      const top = item.viewId === state.other && state.other !== state.shown;
      item.setOpacity(!wanted.includes(item.viewId) ? 0 : top && state.how === "overlay" ? state.opacity : 1);
    }
    tidy();
    clip();
    tags();
  }

  const swiping = () => Boolean(state.other) && state.how === "swipe";

  function clip() {
    const divider = $("divider"), x = state.line * viewer.container.clientWidth;
    divider.hidden = !swiping();
    divider.style.left = `${x}px`;
    divider.setAttribute("aria-valuenow", Math.round(100 * state.line));
    for (const item of drawn()) {
      const id = item.viewId;
      if (!swiping() || (id !== state.other && id !== state.shown) || state.other === state.shown) {
        if (item.getClip()) item.setClip(null);
        continue;
      }
      const at = viewer.viewport.viewerElementToImageCoordinates ? item.viewerElementToImageCoordinates(new OpenSeadragon.Point(x, 0)).x : 0;
      const cut = Math.min(Math.max(at, 0), width);
      const box = id === state.other ? new OpenSeadragon.Rect(cut, 0, width - cut, height) : new OpenSeadragon.Rect(0, 0, cut, height);
      const now = item.getClip();
      if (!now || now.x !== box.x || now.width !== box.width) item.setClip(box);
    }
  }

  function tags() {
    const name = (id) => scene.views.find((view) => view.id === id)?.name ?? "";
    $("left-name").hidden = $("right-name").hidden = !swiping();
    $("left-name").textContent = name(state.shown);
    $("right-name").textContent = name(state.other);
    placeTags();
  }

  function placeTags() {
    const x = state.line * viewer.container.clientWidth, wide = innerWidth > 640;
    const panel = $("panel").getBoundingClientRect();
    $("left-name").style.right = `${viewer.container.clientWidth - x + 20}px`;
    $("left-name").style.left = "auto";
    $("left-name").style.maxWidth = `${Math.max(0, x - 32 - (wide ? panel.right : 0))}px`;
    $("right-name").style.left = `${x + 20}px`;
    $("right-name").style.maxWidth = `${Math.max(0, viewer.container.clientWidth - x - 84)}px`;
  }

  // --- scale, place

  function scale() {
    const zoom = viewer.viewport.getZoom(true) * viewer.container.clientWidth / width; // screen pixels an image pixel
    const size = scene.pixel_size_um;
    viewer.drawer.setImageSmoothingEnabled(zoom < 3);
    // What is not opaque and what has several tiles is drawn by way of a second canvas, which the drawer forgets to tell.
    if (viewer.drawer.sketchContext) viewer.drawer.sketchContext.imageSmoothingEnabled = zoom < 3;
    $("where").textContent = [place, size ? micrometres(1 / zoom) : "", `${trim(100 * zoom)} %`].filter(Boolean).join("  ·  ");
    if (!size) return;
    const most = Math.min(220, viewer.container.clientWidth / 4) * size[1] / zoom;
    const power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].find((step) => step * power <= most * (1 + 1e-9)) * power;
    $("scale").hidden = false;
    $("scale-bar").style.width = `${length * zoom / size[1]}px`;
    const label = length >= 1000 ? `${trim(length / 1000)} mm` : length >= 1 ? `${trim(length)} µm` : `${trim(length * 1000)} nm`;
    $("scale-label").textContent = isSquare() ? label : `${label} in x`;
  }
  const trim = (value) => String(Number(value.toPrecision(3)));
  const isSquare = ([y, x] = scene.pixel_size_um) => Math.abs(y - x) <= 0.01 * Math.max(y, x);
  function micrometres(times) {
    const [y, x] = scene.pixel_size_um;
    return isSquare() ? `${trim(x * times)} µm/px` : `${trim(x * times)} × ${trim(y * times)} µm/px`;
  }
  let place = "";

  viewer.addHandler("viewport-change", () => { clip(); scale(); });
  viewer.addHandler("resize", () => { clip(); placeTags(); scale(); });
  viewer.addHandler("open", scale);
  viewer.addHandler("animation-finish", () => {
    // At full resolution pixels come to rest on the screen's own: between two of them each would be drawn as a mean.
    const { x: across, y: down } = viewer.viewport.getContainerSize(), centre = viewer.viewport.getCenter();
    if (Math.abs(viewer.viewport.getZoom() * across / width - 1) > 1e-6) return;
    const whole = (at, side) => (Math.round(at * width - side / 2) + side / 2) / width;
    const near = new OpenSeadragon.Point(whole(centre.x, across), whole(centre.y, down));
    if (near.distanceTo(centre) * width > 1e-6) viewer.viewport.panTo(near, true);
  });
  new OpenSeadragon.MouseTracker({
    element: viewer.canvas, startDisabled: false,
    moveHandler: (event) => {
      const at = viewer.world.getItemAt(0)?.viewerElementToImageCoordinates(event.position);
      const inside = at && at.x >= 0 && at.y >= 0 && at.x < width && at.y < height;
      place = inside ? `x ${Math.floor(at.x)}, y ${Math.floor(at.y)}` : "";
      scale();
    },
    leaveHandler: () => { place = ""; scale(); },
  });

  function alert_(text) {
    $("alert").textContent = text;
    $("alert").hidden = !text;
  }
  let told = 0;
  viewer.addHandler("tile-load-failed", async ({ tile }) => {
    if (Date.now() - told < 3000) return;
    told = Date.now();
    try {
      const answer = await fetch(tile.getUrl());
      if (!answer.ok) alert_(`A tile cannot be shown: ${(await answer.text()).trim()}`);
    } catch { alert_("tiledblend does not answer any more: was it stopped?"); }
  });
  viewer.addHandler("tile-loaded", () => { if (Date.now() - told > 5000) alert_(""); });

  // --- controls

  function choice(kind, name, value, label, key, colour) {
    const row = document.createElement("label"), input = document.createElement("input"), text = document.createElement("span");
    row.className = "choice";
    Object.assign(input, { type: kind, name, value });
    text.textContent = row.title = label;
    row.append(input, text);
    if (colour) { const line = document.createElement("i"); line.style.color = colour; row.append(line); }
    if (key) { const kbd = document.createElement("kbd"); kbd.textContent = key; row.append(kbd); }
    return row;
  }

  $("title").textContent = $("title").title = document.title = scene.title;
  $("facts").textContent = `${width.toLocaleString("en")} × ${height.toLocaleString("en")} px, ${scene.dtype}` +
    (scene.pixel_size_um ? `, ${micrometres(1)}` : ", no pixel size");
  $("note").textContent = scene.note ?? "";
  $("note").hidden = !scene.note;
  scene.views.forEach((view, i) => $("views").append(choice("radio", "view", view.id, view.name, i < 9 ? String(i + 1) : "")));
  $("views").addEventListener("change", (event) => show(event.target.value));
  $("compare").hidden = scene.views.length < 2;
  $("other").append(new Option("nothing", ""), ...scene.views.map((view) => new Option(view.name, view.id)));
  $("other").addEventListener("change", (event) => { compare(event.target.value); event.target.blur(); });
  document.querySelectorAll("[name=how]").forEach((input) => input.addEventListener("change", () => how(input.value)));
  $("opacity").addEventListener("input", (event) => fade(event.target.value / 100));
  $("edges").hidden = !scene.edges.length;
  scene.edges.forEach((edge) => $("edges").append(choice("checkbox", "edge", edge.id, edge.name, scene.edges.length === 1 ? "e" : "", edge.colour)));
  $("edges").addEventListener("change", (event) => edge(event.target.value, event.target.checked));

  function show(id) {
    if (id === state.other) compare(state.shown); // a picture beside itself says nothing: they change sides
    state.shown = id;
    document.querySelector(`[name=view][value="${id}"]`).checked = true;
    arrange();
  }
  function compare(id) {
    state.other = id;
    $("other").value = id;
    $("how").hidden = !id;
    $("opacity-row").hidden = !id || state.how !== "overlay";
    arrange();
  }
  function how(value) {
    state.how = value;
    document.querySelector(`[name=how][value=${value}]`).checked = true;
    compare(state.other);
  }
  function fade(value) {
    state.opacity = Math.min(1, Math.max(0, value));
    $("opacity").value = Math.round(100 * state.opacity);
    $("opacity-value").textContent = `${Math.round(100 * state.opacity)} %`;
    arrange();
  }
  function edge(id, on) {
    if (on) state.edges.add(id); else state.edges.delete(id);
    document.querySelector(`[name=edge][value="${id}"]`).checked = on;
    arrange();
  }
  function moveLine(share) {
    state.line = Math.min(0.98, Math.max(0.02, share));
    clip();
    placeTags();
  }

  const divider = $("divider");
  divider.addEventListener("pointerdown", (event) => { divider.setPointerCapture(event.pointerId); event.preventDefault(); divider.focus(); });
  divider.addEventListener("pointermove", (event) => {
    if (divider.hasPointerCapture(event.pointerId)) moveLine(event.clientX / viewer.container.clientWidth);
  });
  divider.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
    if (step) { moveLine(state.line + step); event.preventDefault(); event.stopPropagation(); }
  });

  // --- channels

  let waiting;
  const later = () => { clearTimeout(waiting); waiting = setTimeout(recolour, 120); };
  function channelRow(channel, first) {
    const row = document.createElement("div");
    row.className = "channel";
    row.innerHTML = '<div class="head"><label><input type="checkbox"><span></span></label><input type="color"></div>' +
      '<div class="ends"><input type="range" class="low"><input type="number" class="low" step="any">' +
      '<input type="range" class="high"><input type="number" class="high" step="any"></div>';
    const [on, colour] = row.querySelectorAll("[type=checkbox], [type=color]");
    row.querySelector("span").textContent = row.querySelector("span").title = channel.name;
    colour.setAttribute("aria-label", `Colour of ${channel.name}`);
    // A useful travel: the data's own range with as much again above it, within what the numbers can hold.
    const end = Math.min(first.high + (first.high - first.low), channel.full ?? Infinity), start = Math.min(0, first.low);
    for (const which of ["low", "high"]) {
      for (const input of row.querySelectorAll(`.${which}`)) {
        input.setAttribute("aria-label", `${which === "low" ? "Black" : "Full colour"} at, ${channel.name}`);
        if (input.type === "range") Object.assign(input, { min: start, max: end, step: channel.full ? 1 : (end - start) / 1000 });
        input.addEventListener("input", () => {
          if (input.value === "" || !Number.isFinite(Number(input.value))) return;
          channel[which] = Number(input.value);
          row.sync(input);
          later();
        });
      }
    }
    on.addEventListener("change", () => { channel.on = on.checked; row.sync(); later(); });
    colour.addEventListener("input", () => { channel.colour = colour.value.slice(1).toUpperCase(); later(); });
    row.sync = (from) => {
      on.checked = channel.on;
      row.classList.toggle("off", !channel.on);
      colour.value = `#${channel.colour}`;
      for (const which of ["low", "high"]) for (const input of row.querySelectorAll(`.${which}`)) {
        if (input !== from) input.value = channel.full ? Math.round(channel[which]) : Number(channel[which].toPrecision(4));
      }
    };
    row.sync();
    return row;
  }
  const rows = state.channels.map((channel, i) => channelRow(channel, scene.channels[i]));
  $("channel-list").append(...rows);
  $("channels").hidden = !rows.length;
  const all = (change) => { state.channels.forEach(change); rows.forEach((row) => row.sync()); later(); };
  $("all-channels").addEventListener("click", () => all((c) => { c.on = true; }));
  $("no-channels").addEventListener("click", () => all((c) => { c.on = false; }));
  $("reset-channels").addEventListener("click", () => all((c, i) => Object.assign(c, scene.channels[i], { on: true })));

  // --- zoom, keys, panel

  const zoomBy = (factor) => { viewer.viewport.zoomBy(factor); viewer.viewport.applyConstraints(); };
  const panBy = (x, y) => {
    const step = viewer.viewport.getBounds().width * 0.1;
    viewer.viewport.panBy(new OpenSeadragon.Point(x * step, y * step));
    viewer.viewport.applyConstraints();
  };
  const fit = () => viewer.viewport.goHome();
  const fullResolution = () => viewer.viewport.zoomTo(width / viewer.container.clientWidth);
  $("zoom-in").addEventListener("click", () => zoomBy(1.6));
  $("zoom-out").addEventListener("click", () => zoomBy(1 / 1.6));
  $("fit").addEventListener("click", fit);
  $("full").addEventListener("click", fullResolution);
  $("help-open").addEventListener("click", () => $("help").showModal());
  function panel(open) {
    $("controls").hidden = !open;
    $("panel-toggle").setAttribute("aria-expanded", open);
    $("panel-toggle").textContent = open ? "Hide" : "Show";
  }
  $("panel-toggle").addEventListener("click", () => panel($("controls").hidden));
  panel(innerWidth > 640);

  const keys = {
    ArrowLeft: () => panBy(-1, 0), ArrowRight: () => panBy(1, 0), ArrowUp: () => panBy(0, -1), ArrowDown: () => panBy(0, 1),
    "+": () => zoomBy(1.6), "=": () => zoomBy(1.6), "-": () => zoomBy(1 / 1.6), 0: fit, Home: fit, f: fullResolution,
    c: () => {
      const others = ["", ...scene.views.map((view) => view.id).filter((id) => id !== state.shown)];
      compare(others[(others.indexOf(state.other) + 1) % others.length]);
    },
    s: () => state.other && how(state.how === "swipe" ? "overlay" : "swipe"),
    "[": () => (state.how === "swipe" ? moveLine(state.line - 0.05) : fade(state.opacity - 0.1)),
    "]": () => (state.how === "swipe" ? moveLine(state.line + 0.05) : fade(state.opacity + 0.1)),
    e: () => { const on = state.edges.size < scene.edges.length; scene.edges.forEach((item) => edge(item.id, on)); },
    m: () => panel($("controls").hidden), "?": () => $("help").showModal(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
    const number = event.target.matches("input[type=number]");
    if (number && event.key === "Enter") event.target.blur();
    if (number || event.target.matches("select") || (event.target.matches("input") && /^(Arrow|Home)/.test(event.key))) return;
    if (/^[1-9]$/.test(event.key) && scene.views[event.key - 1]) show(scene.views[event.key - 1].id);
    else if (keys[event.key]) keys[event.key]();
    else return;
    event.preventDefault();
  });

  show(state.shown);
  globalThis.tiledblend = { viewer, state }; // for the curious, and for tests
})();
