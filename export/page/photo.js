// The preprocessing of image files, with the steps of common/photo.py, in the browser.
//
// Browsers scale images differently. This file scales them like Pillow, in the same integers: weights of 22 bits, one
// pass along the rows and one along the columns, each rounded to 8 bits.
"use strict";

const WEIGHT_BITS = 22;
const BAND_PIXELS = 2 ** 21; // decoded at a time, because phones limit the area of a canvas

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

// Half the width of each filter, and its value at x; bicubic is Keys' kernel with a = -1/2.
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0)],
  bicubic: [2, (x) => {
    const t = Math.abs(x);
    if (t < 1) return (1.5 * t - 2.5) * t * t + 1;
    return t < 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0;
  }],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

// A decoded file as { width, height, channels, rows }; rows(from, to) are its pixels, one byte per channel.
async function openPhoto(file, channels) {
  const decoded = await createImageBitmap(file, {
    imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none",
  });
  const { width, height } = decoded;
  const canvas = document.createElement("canvas");
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const rows = (from, to) => {
    canvas.width = width;
    canvas.height = to - from;
    pen.fillStyle = "#fff"; // transparent pixels are blended with white
    pen.fillRect(0, 0, width, to - from);
    pen.drawImage(decoded, 0, -from);
    return withoutAlpha(pen.getImageData(0, 0, width, to - from).data, channels);
  };
  return { width, height, channels, rows, close: () => decoded.close() };
}

// RGBA to RGB or, for one channel, to luma: 0.299 R + 0.587 G + 0.114 B with weights of 16 bits.
function withoutAlpha(rgba, channels) {
  const out = new Uint8Array((rgba.length / 4) * channels);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    if (channels === 1) {
      out[to++] = (rgba[from] * 19595 + rgba[from + 1] * 38470 + rgba[from + 2] * 7471 + 0x8000) >> 16;
    } else {
      out[to++] = rgba[from];
      out[to++] = rgba[from + 1];
      out[to++] = rgba[from + 2];
    }
  }
  return out;
}

// The part of a photo that becomes the input of the network, as [left, upper, right, lower] in pixels.
function visibleBox({ width, height }, transform) {
  const edge = (1 - transform.crop) / 2;
  const [left, upper] = [edge * width, edge * height];
  if (transform.crop_mode === "squash") return [left, upper, width - left, height - upper];
  const [liveWidth, liveHeight] = [width - left * 2, height - upper * 2];
  const ratio = transform.width / transform.height;
  const live = liveWidth / liveHeight;
  const cropWidth = live > ratio ? ratio * liveHeight : liveWidth;
  const cropHeight = live < ratio ? liveWidth / ratio : liveHeight;
  const [x, y] = [left + (liveWidth - cropWidth) * 0.5, upper + (liveHeight - cropHeight) * 0.5];
  return [x, y, x + cropWidth, y + cropHeight];
}

// For each of `count` outputs: the index of its first input, and integer weights of this input and those after it.
function filterWeights(inputs, from, to, count, [halfWidth, value]) {
  const scale = Math.fround(to - from) / count; // Pillow stores the box in single precision
  const stretch = Math.max(scale, 1); // a wider filter for smaller outputs prevents aliasing
  return Array.from({ length: count }, (_, i) => {
    const centre = from + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - halfWidth * stretch + 0.5));
    const last = Math.min(inputs, Math.trunc(centre + halfWidth * stretch + 0.5));
    const exact = [];
    for (let j = first; j < last; j++) exact.push(value((j - centre + 0.5) * (1 / stretch)));
    const total = exact.reduce((sum, weight) => sum + weight, 0);
    const whole = (x) => Math.trunc(x * 2 ** WEIGHT_BITS + (x < 0 ? -0.5 : 0.5));
    return { first, weights: Int32Array.from(exact, (weight) => whole(total ? weight / total : weight)) };
  });
}

// One pass over an array of outer × inputs × inner bytes, along its second axis.
function filterAlong(data, outer, inputs, inner, plan) {
  const out = new Uint8ClampedArray(outer * plan.length * inner);
  for (let o = 0, to = 0; o < outer; o++) {
    for (const { first, weights } of plan) {
      for (let c = 0; c < inner; c++, to++) {
        let sum = 2 ** (WEIGHT_BITS - 1);
        let at = (o * inputs + first) * inner + c;
        for (let j = 0; j < weights.length; j++, at += inner) sum += weights[j] * data[at];
        out[to] = sum >> WEIGHT_BITS;
      }
    }
  }
  return out;
}

// Rows `from`…`to` of a photo after `change`, decoded band by band.
function eachBand(photo, from, to, lineBytes, change) {
  const out = new Uint8Array((to - from) * lineBytes);
  const step = Math.max(1, Math.floor(BAND_PIXELS / photo.width));
  for (let y = from; y < to; y += step) {
    const end = Math.min(to, y + step);
    out.set(change(photo.rows(y, end), end - y), (y - from) * lineBytes);
  }
  return out;
}

// A box of a photo, resized, as bytes of height × width × channels.
function resample(photo, box, width, height, interpolation) {
  const [left, upper, right, lower] = box.map(Math.fround);
  if (interpolation === "nearest") return nearest(photo, [left, upper, right, lower], width, height);
  const filter = FILTERS[interpolation];
  const plan = (inputs, from, to, count) =>
    count === inputs && from === 0 && to === inputs ? null : filterWeights(inputs, from, to, count, filter);
  const columns = plan(photo.width, left, right, width);
  let lines = plan(photo.height, upper, lower, height);
  const [from, end] = lines ? [lines[0].first, lines.at(-1).first + lines.at(-1).weights.length] : [0, height];
  lines &&= lines.map(({ first, weights }) => ({ first: first - from, weights }));
  const narrower = (data, rows) => (columns ? filterAlong(data, rows, photo.width, photo.channels, columns) : data);
  const flatter = (data, lineBytes) => (lines ? filterAlong(data, 1, end - from, lineBytes, lines) : data);
  // The rounding between the passes makes their order matter. Pillow 13 begins with the columns of a tall image.
  if (photo.height - height > 2 * Math.max(0, photo.width - width)) {
    const lineBytes = photo.width * photo.channels;
    return narrower(flatter(eachBand(photo, from, end, lineBytes, (data) => data), lineBytes), height);
  }
  const lineBytes = width * photo.channels;
  return flatter(eachBand(photo, from, end, lineBytes, narrower), lineBytes);
}

function nearest(photo, [left, upper, right, lower], width, height) {
  const picked = (from, to, count, inputs) => {
    const step = Math.fround(to - from) / count;
    let x = from + step * 0.5;
    return Array.from({ length: count }, () => {
      const index = Math.min(inputs - 1, Math.floor(x));
      x += step;
      return index;
    });
  };
  const columns = picked(left, right, width, photo.width);
  const out = new Uint8Array(width * height * photo.channels);
  let to = 0;
  for (const y of picked(upper, lower, height, photo.height)) {
    const line = photo.rows(y, y + 1);
    for (const x of columns) {
      for (let c = 0; c < photo.channels; c++) out[to++] = line[x * photo.channels + c];
    }
  }
  return out;
}

// A photo, preprocessed by the transform.
function evaluationView(photo, transform) {
  return resample(photo, visibleBox(photo, transform), transform.width, transform.height, transform.interpolation);
}

// The unchanged pixels of an RGB photo of the model's size, else an error: for a model that records no transform.
function exactPixels(photo, [height, width, channels]) {
  if (photo.width !== width || photo.height !== height) {
    throw new Error(`This image has ${photo.width}×${photo.height} pixels, but the model takes ${width}×${height}.`);
  }
  const pixels = photo.rows(0, height);
  if (channels === 3) return pixels;
  if (pixels.some((value, i) => value !== pixels[i - (i % 3)])) {
    throw new Error("This is a colour image, but the model takes greyscale.");
  }
  return pixels.filter((_, i) => i % 3 === 0);
}
