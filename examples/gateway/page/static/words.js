// Korean and English, and which of them the page speaks.

const WORDS = {
  en: {
    language: "한국어",
    skip: "Skip to the question",
    newConversation: "New chat",
    theme: "Switch between light and dark",
    conversation: "Conversation",
    welcome: "Ask your documents",
    welcomeText: "Answers come from the Markdown files of your corpus, and say where from.",
    suggestions: ["How does the outbox keep a follow-up job from being lost?", "How does SSE resume after a lost connection?",
      "When is a retry invisible to the reader?"],
    question: "Your question",
    send: "Send",
    stop: "Stop",
    close: "Close",
    hint: "Enter sends, Shift+Enter starts a new line.",
    you: "You",
    answer: "Answer",
    sources: (count) => `Sources (${count})`,
    sending: "Sending …",
    queued: "Waiting for its turn …",
    running: "Answering …",
    restart: "The worker went away; another one starts again …",
    stopping: "Stopping …",
    done: "Answer complete.",
    cancelled: "Stopped.",
    failed: (message) => `This could not be answered. ${message}`,
    lost: "This answer is not there any more.",
    offline: "No connection; the page goes on by itself once there is one …",
    again: "Ask again",
    historyFailed: (message) => `Earlier messages can't be shown now: ${message}`,
    passageFailed: (message) => `The passage can't be shown: ${message}`,
    quoted: "The quoted passage:",
  },
  ko: {
    language: "English",
    skip: "질문으로 건너뛰기",
    newConversation: "새 대화",
    theme: "밝은 화면과 어두운 화면 바꾸기",
    conversation: "대화",
    welcome: "문서에게 물어보세요",
    welcomeText: "답은 문서 폴더의 마크다운 파일에서 찾고, 어디에서 왔는지 함께 보여 줍니다.",
    suggestions: ["워커가 죽으면 그 작업은 몇 초 안에 다른 워커가 이어받나요?", "스트림을 이어서 읽으려면 어떻게 하나요?",
      "펜싱 토큰은 왜 필요한가요?"],
    question: "질문",
    send: "보내기",
    stop: "멈추기",
    close: "닫기",
    hint: "Enter로 보내고, Shift+Enter로 줄을 바꿉니다.",
    you: "질문",
    answer: "답변",
    sources: (count) => `출처 ${count}개`,
    sending: "보내는 중 …",
    queued: "차례를 기다리는 중 …",
    running: "답하는 중 …",
    restart: "워커가 사라져 다른 워커가 처음부터 다시 답합니다 …",
    stopping: "멈추는 중 …",
    done: "답변이 끝났습니다.",
    cancelled: "멈췄습니다.",
    failed: (message) => `답하지 못했습니다. ${message}`,
    lost: "이 답변은 더 이상 남아 있지 않습니다.",
    offline: "연결이 끊겼습니다. 다시 연결되면 이어서 보여 줍니다 …",
    again: "다시 묻기",
    historyFailed: (message) => `이전 대화를 지금은 보여 줄 수 없습니다: ${message}`,
    passageFailed: (message) => `출처를 보여 줄 수 없습니다: ${message}`,
    quoted: "인용된 부분:",
  },
};

const KEY = "protostar:language";
let language = localStorage.getItem(KEY) ?? (navigator.language.startsWith("ko") ? "ko" : "en");

/** What the page says for `key`. */
export function say(key, ...values) {
  const word = WORDS[language][key];
  return typeof word === "function" ? word(...values) : word;
}

/** Speak the other language from now on. */
export function switchLanguage() {
  language = language === "ko" ? "en" : "ko";
  localStorage.setItem(KEY, language);
}

/** Put words into what the HTML leaves empty. */
export function label(root) {
  document.documentElement.lang = language;
  for (const element of root.querySelectorAll("[data-word]")) element.textContent = say(element.dataset.word);
  for (const element of root.querySelectorAll("[data-label]")) element.ariaLabel = say(element.dataset.label);
  for (const element of root.querySelectorAll("[data-placeholder]")) {
    element.placeholder = say(element.dataset.placeholder);
  }
}
