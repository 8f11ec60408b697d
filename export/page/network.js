// The network: onnxruntime-web and the model, both from data blocks of this page, and the classification of one image.
"use strict";

const about = JSON.parse(document.getElementById("about").textContent);
const [imageHeight, imageWidth, imageChannels] = about.image_shape;

// The bytes of a data block of this page, which is gzip in base64.
async function inlined(id) {
  const element = document.getElementById(id);
  const letters = atob(element.textContent.trim());
  element.remove(); // so that the block is not in memory twice
  const packed = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function startNetwork() {
  const runtime = await inlined("runtime");
  ort.env.logLevel = "error";
  Object.assign(ort.env.wasm, { numThreads: 1, proxy: false, simd: true, wasmPaths: "" });
  // The runtime fetches its WebAssembly program by name: the reply is the program of this page, without a network.
  window.fetch = async () => new Response(runtime, { headers: { "Content-Type": "application/wasm" } });
  return ort.InferenceSession.create(await inlined("model"), { executionProviders: ["wasm"] });
}

const network = startNetwork();
let previous = Promise.resolve(); // a session runs one image at a time

// Bytes of height × width × channels as the model's input, a batch of one.
function inputTensor(pixels) {
  const { dtype, layout, shape } = about.input;
  const { mean, std } = about.preprocessing;
  const values = dtype === "uint8" ? new Uint8Array(pixels.length) : new Float32Array(pixels.length);
  for (let i = 0, plane = imageHeight * imageWidth; i < pixels.length; i++) {
    const channel = i % imageChannels;
    const to = layout === "NCHW" ? channel * plane + (i - channel) / imageChannels : i;
    values[to] = dtype === "uint8" ? pixels[i] : (pixels[i] / 255 - mean[channel]) / std[channel];
  }
  return new ort.Tensor(dtype, values, [1, ...shape]);
}

// { label, probabilities, cosines, oodScore } for bytes of height × width × channels.
function classifyPixels(pixels) {
  const answer = previous.then(async () => {
    const session = await network;
    const outputs = ["label", "probabilities", "cosines", ...(about.ood ? ["ood_score"] : [])];
    const found = await session.run({ [about.input.name]: inputTensor(pixels) }, outputs);
    const probabilities = Array.from(found.probabilities.data);
    if (!probabilities.every(Number.isFinite)) throw new Error("The network's output is not finite.");
    const cosines = Array.from(found.cosines.data, (cosine) => Math.min(1, Math.max(-1, cosine)));
    return { label: Number(found.label.data[0]), probabilities, cosines, oodScore: found.ood_score?.data[0] };
  });
  previous = answer.catch(() => {});
  return answer;
}

// The input of the network for an image file, as bytes of height × width × channels.
async function viewOf(file) {
  let photo;
  try {
    photo = await openPhoto(file, about.transform ? imageChannels : 3);
  } catch {
    throw new Error(`This browser cannot read ${file.name || "that"} as an image: choose a JPEG, PNG or WebP file.`);
  }
  try {
    return about.transform ? evaluationView(photo, about.transform) : exactPixels(photo, about.image_shape);
  } finally {
    photo.close();
  }
}

// For the browser's console: await etf.classify(file), await etf.view(file).
window.etf = { view: viewOf, classify: async (file) => classifyPixels(await viewOf(file)) };
