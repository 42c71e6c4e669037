// Scores as people read them: digits, and a colour by how far a score is from its threshold.

const CLIP = 12; // logits: beyond, nothing more is told apart

export const logit = (score) => Math.max(-CLIP, Math.min(CLIP, Math.log(score / (1 - score))));

export const shown = (score) => (score === null ? "unreadable" : score > 0 && score < 0.0005 ? "< 0.001" : score.toFixed(3));

export const precise = (score) => (score === null ? "unreadable" : score === 0 || score >= 0.001 ? score.toFixed(4) : score.toExponential(1));

// A score that is no number is flagged.
export const isFlagged = (score, threshold) => score === null || score >= threshold;

// From 0, far below the threshold, over 0.5 at it, to 1.
export function heat(score, threshold) {
  if (score === null) return 1;
  const distance = logit(score) - logit(threshold);
  return distance < 0 ? 0.5 * Math.exp(distance / 3) : 0.5 + 0.5 * (1 - Math.exp(-(distance + 1) / 4));
}

export const paint = (element, score, threshold) => {
  element.style.setProperty("--heat", heat(score, threshold).toFixed(3));
  element.classList.toggle("hot", isFlagged(score, threshold));
};
